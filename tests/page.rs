//! The page in a real browser, of a real daemon: what happens while it is open appears, and foreign names stay text.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's failure is a panic"
)]

mod common;

#[path = "page/browser.rs"]
mod browser;

use std::process::Command;

use browser::Browser;
use common::{Daemon, Tree, holder, listener, ports_of_ones_own};
use serde_json::{Value, json};

/// A browser whose failures are the test's.
struct Page(Browser);

impl Page {
    #[track_caller]
    fn open(daemon: &Daemon, route: &str) -> Page {
        let mut page = Page(Browser::start().unwrap());
        page.0.open(&daemon.metrics, route).unwrap();
        page.wait("#connection[data-state=live]");
        page
    }

    #[track_caller]
    fn ask(&mut self, command: Value) -> Value {
        self.0.ask(command).unwrap()
    }

    #[track_caller]
    fn go(&mut self, route: &str) {
        self.ask(json!({"do": "eval", "expression": format!("location.hash = '#/{route}'")}));
    }

    #[track_caller]
    fn wait(&mut self, selector: &str) {
        self.ask(json!({"do": "wait_selector", "selector": selector, "within_ms": 30_000}));
    }

    #[track_caller]
    fn wait_text(&mut self, text: &str) {
        self.ask(json!({"do": "wait_text", "text": text, "within_ms": 30_000}));
    }

    #[track_caller]
    fn count(&mut self, selector: &str) -> u64 {
        self.ask(json!({"do": "count", "selector": selector})).as_u64().unwrap()
    }

    #[track_caller]
    fn eval(&mut self, expression: &str) -> Value {
        self.ask(json!({"do": "eval", "expression": expression}))
    }

    /// Presses a key until this is true; answers whether it ever was.
    #[track_caller]
    fn press(&mut self, key: &str, until: &str) -> bool {
        (0..40).any(|_| {
            self.ask(json!({"do": "press", "key": key}));
            self.eval(until) == true
        })
    }

    /// Nothing went wrong since it was opened: no error, no forbidden content, no failed request.
    #[track_caller]
    fn assert_sound(&mut self) {
        let problems = self.ask(json!({"do": "problems"}));
        assert_eq!(problems, json!([]));
    }
}

#[test]
#[ignore = "needs root, chromium, node"]
fn a_leak_and_a_conflict_appear_while_the_page_is_open() {
    let daemon = Daemon::start("");
    let mut page = Page::open(&daemon, "now");
    let (_tree, leaked) = daemon.leftover("left-on-the-page");
    page.wait_text(&leaked.to_string());
    page.wait_text("leaked");
    let [port] = ports_of_ones_own();
    let blocker = Tree::holder(&[&format!("tcp:127.0.0.1:{port}")]);
    let loser = Tree::holder(&[&format!("try:tcp:127.0.0.1:{port}")]);
    page.go("conflicts");
    page.wait_text(&port.to_string());
    // Both sides are told where it is clicked.
    page.go("timeline");
    page.wait("[data-conflict]");
    page.wait("[data-hold]");
    page.eval(
        "document.querySelector('[data-conflict]').dispatchEvent(new MouseEvent('click', {bubbles: true}))",
    );
    page.wait("#details:not([hidden])");
    page.wait_text(&format!("{}", loser.it().pid));
    page.wait_text(&format!("{}", blocker.it().pid));
    // What goes is gone without a reload.
    page.go("now");
    page.wait_text(&port.to_string());
    drop((loser, blocker));
    page.ask(json!({"do": "type", "selector": "#filter", "text": port.to_string()}));
    let gone = format!("!document.querySelector('#view').innerText.includes('{port}')");
    common::eventually("the port is let go of", || (page.eval(&gone) == true).then_some(()));
    page.assert_sound();
}

#[test]
#[ignore = "needs root, chromium, node"]
fn a_hostile_name_stays_text() {
    let daemon = Daemon::start("");
    let directory = common::open_directory();
    let [port] = ports_of_ones_own();
    // A name of a process has 15 bytes; its arguments may be longer.
    let mut command = Command::new(common::program(&directory, "<img src=x>"));
    let markup = "env:X=<script>document.title='owned'</script><img src=x onerror=document.title='owned'>\u{202e}\u{1b}[31m";
    let _tree = Tree::start(command.args(["it", &format!("tcp:127.0.0.1:{port}"), markup]), &["it"]);
    let mut page = Page::open(&daemon, "now");
    for route in ["now", "timeline", &format!("port/{port}")] {
        page.go(route);
        page.wait_text(&port.to_string());
        assert_eq!(page.count("#view img, #view script, #details img, #details script"), 0, "{route}");
    }
    page.wait_text("<img src=x>");
    page.go("timeline");
    page.wait("[data-hold]");
    page.eval("for (const bar of document.querySelectorAll('[data-hold]')) bar.dispatchEvent(new MouseEvent('click', {bubbles: true}))");
    page.wait("#details:not([hidden])");
    assert_eq!(page.count("#view img, #details img, #details script"), 0);
    assert_ne!(page.eval("document.title"), "owned");
    assert_eq!(
        page.eval("document.body.innerText.includes('\\u202e')"),
        false,
        "it turns no direction of writing"
    );
    page.assert_sound();
}

#[test]
#[ignore = "needs root, chromium, node"]
fn a_job_has_a_page_with_its_evidence() {
    let daemon = Daemon::start("");
    daemon.job("start", "a job/with: odd characters");
    let tree = listener(&["env:SNIFFER_JOB_ID=a job/with: odd characters"]);
    let port = tree.get("server").port();
    daemon.who_holds(port);
    let mut page = Page::open(&daemon, "job/custom/a%20job%2Fwith%3A%20odd%20characters");
    page.wait_text("No port conflict was seen in this job so far.");
    page.wait_text(&port.to_string());
    let evidence = page.eval(
        "[...document.querySelectorAll('a')].map((a) => a.href).find((href) => href.includes('format=html'))",
    );
    let path = evidence.as_str().unwrap().split_once(&daemon.metrics).unwrap().1.to_owned();
    let (status, body) = daemon.get(&path).unwrap();
    assert!(status == 200 && body.contains(&port.to_string()), "{body}");
    page.assert_sound();
}

#[test]
#[ignore = "needs root, chromium, node"]
fn it_can_be_used_by_keyboard_on_a_phone_and_in_the_dark() {
    let daemon = Daemon::start("");
    let [one, other] = ports_of_ones_own();
    let _tree = Tree::holder(&[&format!("tcp:127.0.0.1:{one}"), &format!("udp:127.0.0.1:{other}")]);
    let mut page = Page::open(&daemon, "now");
    for (width, dark) in [(360, false), (360, true), (1280, true)] {
        for route in ["now", "timeline", "conflicts", &format!("port/{one}")] {
            let url = format!("http://{}/#/{route}", daemon.metrics);
            page.ask(json!({"do": "open", "url": url, "width": width, "height": 800, "dark": dark}));
            page.wait("#connection[data-state=live]");
            assert_eq!(page.ask(json!({"do": "overflow"})), false, "{route} at {width}");
            assert_eq!(page.ask(json!({"do": "accessible"})), json!([]), "{route}: each has a name");
            page.assert_sound();
        }
    }
    page.go("timeline");
    page.wait("[data-hold]");
    // From the head to a bar, into the details, and back to where one was.
    page.eval("document.querySelector('#filter').focus()");
    let on_a_bar = "document.activeElement.matches('[data-hold], [data-conflict]')";
    assert!(page.press("Tab", "document.activeElement.closest('.lane') !== null"), "the timeline is reached");
    assert!(page.press("ArrowRight", on_a_bar), "a bar is reached");
    page.ask(json!({"do": "press", "key": "Enter"}));
    page.wait("#details:not([hidden])");
    page.ask(json!({"do": "press", "key": "Escape"}));
    assert_eq!(page.eval("document.querySelector('#details').hidden"), true);
    assert_eq!(page.eval(on_a_bar), true, "the focus is back");
}

#[test]
#[ignore = "needs root, chromium, node"]
fn an_agent_that_ends_is_told_and_one_that_is_back_is_shown() {
    let mut daemon = Daemon::start("");
    let mut page = Page::open(&daemon, "now");
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    page.wait("#connection:not([data-state=live])");
    daemon.crash_and_restart();
    page.wait("#connection[data-state=live]");
    let [port] = ports_of_ones_own();
    let mut command = Command::new(holder());
    let _tree = Tree::start(command.args(["it", &format!("tcp:127.0.0.1:{port}")]), &["it"]);
    page.wait_text(&port.to_string());
}
