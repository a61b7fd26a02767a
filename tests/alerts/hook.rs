//! A receiver of alerts.

#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, reason = "a test's failure is a panic")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A request to a receiver: its path and its document.
pub(super) type Request = (String, Value);

/// Receives alerts on a port, and answers each with the next of these statuses, the last one for ever.
pub(super) struct Hook {
    pub(super) port: u16,
    pub(super) requests: mpsc::Receiver<Request>,
}

impl Hook {
    pub(super) fn start(statuses: &'static [u16]) -> Hook {
        Hook::listen(TcpListener::bind("127.0.0.1:0").unwrap(), statuses)
    }

    pub(super) fn listen(listener: TcpListener, statuses: &'static [u16]) -> Hook {
        let port = listener.local_addr().unwrap().port();
        let (sender, requests) = mpsc::channel();
        std::thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let status = statuses.get(number).or(statuses.last()).unwrap();
                let Some(request) = Hook::serve(stream.unwrap(), *status) else { continue };
                if *status == 200 && sender.send(request).is_err() {
                    return;
                }
            }
        });
        Hook { port, requests }
    }

    fn serve(mut stream: TcpStream, status: u16) -> Option<Request> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let (mut first, mut length) = (String::new(), 0);
        reader.read_line(&mut first).ok()?;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").ok()?;
        Some((first.split(' ').nth(1)?.to_owned(), serde_json::from_slice(&body).ok()?))
    }

    pub(super) fn config(&self) -> String {
        format!("[[alerts.webhook]]\nurl = \"http://127.0.0.1:{}/hook\"\n", self.port)
    }

    /// The next alert about this port.
    #[track_caller]
    pub(super) fn next(&self, port: u16) -> Value {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let (_, alert) = self.requests.recv_timeout(end - Instant::now()).expect("an alert comes");
            if alert["port"] == port {
                return alert;
            }
        }
    }

    /// Nothing more comes about this port within that time.
    #[track_caller]
    pub(super) fn is_silent(&self, port: u16, time: Duration) {
        let end = Instant::now() + time;
        while let Ok((_, alert)) = self.requests.recv_timeout(end.saturating_duration_since(Instant::now())) {
            assert_ne!(alert["port"], port, "{alert:#}");
        }
    }
}
