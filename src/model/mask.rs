//! Command lines without the secrets in them. They are masked where they are read, before anybody can keep, log or show them.

use std::fmt;
use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};

/// What stands in place of a secret.
pub const MASKED: &[u8] = b"***";

/// An operator's pattern may not grow beyond this when compiled, in bytes.
const COMPILED_BYTES: usize = 1024 * 1024;

/// What the built-in patterns look for. A command line is as /proc has it: arguments ended by NUL. What a pattern's first group
/// matches is masked, or all that it matches where it has none. Letters match in either case.
#[rustfmt::skip]
const BUILT_IN: [&str; 10] = [
    // --password=…, DB_PASSWORD=…, -Dspring.datasource.password=…: to the end of the argument.
    r"(?:^|\x00)[\w.-]*NAME[\w.-]*=([^\x00]+)",
    // --password …: the next argument, unless it is a long option.
    r"(?:^|\x00)--?[\w.-]*NAME[\w.-]*\x00(-?[^\x00-][^\x00]*)",
    // The same within an argument, such as a script, a header, a query or JSON: the next word, or what is quoted.
    r#"[\w.-]*NAME[\w.-]*["']?\s*[=:]\s*((?:(?:bearer|basic|token|digest|negotiate)\s+)?(?:"(?:[^"\\\x00]|\\[^\x00])*"?|'[^'\x00]*'?|[^\s\x00"'])+)"#,
    r#"\s--?[\w.-]*NAME[\w.-]*\s+("(?:[^"\\\x00]|\\[^\x00])*"?|'[^'\x00]*'?|-?[^\s\x00"'-][^\s\x00]*)"#,
    // What issuers of tokens begin them with: GitHub, GitLab, Slack, npm, PyPI, Docker, Vault, and any JSON web token.
    r"\b(?:gh[pousr]_|github_pat_|gl[a-z]{2,5}-|xox[a-z]-|npm_|pypi-|dckr_pat_|hvs\.)(?:[\w-]{16,}|[\w-]*$)",
    r"\beyj[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^\x00]*",
    // Programs that take a password by a short option.
    r"(?:^|[\x00\s/])sshpass[\x00\s]+-p[\x00\s]*([^\s\x00]+)",
    r"(?:^|[\x00\s/])(?:curl|wget)(?:[\x00\s]+[^\s\x00]+)*?[\x00\s]+(?:-u|--(?:proxy-)?user)[\x00\s=]*[^\s\x00:]+:([^\s\x00]+)",
    r"(?:^|[\x00\s/])(?:mysql\w*(?:[\x00\s]+[^\s\x00]+)*?[\x00\s]+-p|(?:redis-cli|docker|podman)(?:[\x00\s]+[^\s\x00]+)*?[\x00\s]+(?:-a|login(?:[\x00\s]+[^\s\x00]+)*?[\x00\s]+-p)[\x00\s]+)([^\s\x00]+)",
];

/// user:password@host of an address, and a long name that is no user's.
const IN_ADDRESSES: [&str; 2] =
    [r"[a-z][a-z0-9+.-]*://[^\s/\x00:@]*:([^\s\x00/]+)@", r"[a-z][a-z0-9+.-]*://([^\s/\x00:@]{16,})@"];

/// Names of what is nobody's business, as part of an option's, a variable's or a header's name. Short words are whole ones: there are
/// `--bypass`, `PWD` and `--author`.
const NAME: &str = r"(?:passw(?:or)?d|passphrase|(?:\b|_)pass(?:in|out)?\b|_pwd\b|;\s*pwd\b|secret|token|(?:access|account|api|encryption|license|master|private|shared|signing)[_-]?key|credential|authorization|_auth\b|cookie)";

static BUILT_IN_COMPILED: LazyLock<Vec<Regex>> = LazyLock::new(|| {
    let patterns = BUILT_IN.iter().filter_map(|pattern| compile(&pattern.replace("NAME", NAME)).ok());
    patterns.chain(IN_ADDRESSES_COMPILED.iter().cloned()).collect()
});

static IN_ADDRESSES_COMPILED: LazyLock<Vec<Regex>> =
    LazyLock::new(|| IN_ADDRESSES.iter().filter_map(|pattern| compile(pattern).ok()).collect());

/// A text without passwords in addresses: CI systems have them in variables that name a repository or a page.
pub fn without_passwords(text: &str) -> String {
    if !text.contains("://") {
        return text.to_owned();
    }
    let masked = masked(text.as_bytes(), IN_ADDRESSES_COMPILED.iter());
    String::from_utf8_lossy(&masked).into_owned()
}

/// What is left of a line that was cut off: the last word may be the beginning of a secret that no pattern knows by half.
pub fn whole_words(line: &[u8]) -> &[u8] {
    let end = line.iter().rposition(|byte| *byte == 0 || byte.is_ascii_whitespace());
    line.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// The patterns that are looked for.
#[derive(Clone)]
pub struct Mask {
    built_in: bool,
    own: Vec<Regex>,
}

impl Default for Mask {
    /// The built-in patterns.
    fn default() -> Self {
        Mask { built_in: true, own: Vec::new() }
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mask").field("built_in", &self.built_in).field("own", &self.own.len()).finish()
    }
}

impl Mask {
    /// The built-in patterns or none, and these. Errors: the first pattern that is none, with what is wrong in it.
    pub fn new(built_in: bool, patterns: &[String]) -> Result<Self, String> {
        let own = patterns.iter().map(|pattern| compile(pattern)).collect::<Result<_, _>>()?;
        Ok(Mask { built_in, own })
    }

    /// A command line (arguments ended by NUL, as `/proc/PID/cmdline` has it; proc_pid_cmdline(5)) with its secrets masked. As
    /// many arguments come out as went in.
    pub fn apply(&self, line: &[u8]) -> Vec<u8> {
        let built_in = self.built_in.then(|| BUILT_IN_COMPILED.iter()).into_iter().flatten();
        masked(line, built_in.chain(&self.own))
    }
}

fn masked<'a>(line: &[u8], patterns: impl Iterator<Item = &'a Regex>) -> Vec<u8> {
    let mut secret = vec![false; line.len()];
    for pattern in patterns {
        find(pattern, line, &mut secret);
    }
    let mut masked = Vec::with_capacity(line.len());
    let mut within = false;
    for (byte, secret) in line.iter().zip(secret) {
        let hidden = secret && *byte != 0;
        match (hidden, within) {
            (true, false) => masked.extend_from_slice(MASKED),
            (true, true) => {}
            (false, _) => masked.push(*byte),
        }
        within = hidden;
    }
    masked
}

/// Marks what a pattern finds, and goes on behind it. Only where a whole argument was hidden it is searched too: it may be the name of
/// the next one. So no byte is looked at more often than a few times, whatever stands in the line.
fn find(pattern: &Regex, line: &[u8], secret: &mut [bool]) {
    let mut from = 0;
    while let Some(found) = pattern.captures_at(line, from) {
        let (Some(whole), Some(hidden)) = (found.get(0), found.iter().flatten().nth(1).or(found.get(0)))
        else {
            return;
        };
        secret.get_mut(hidden.range()).into_iter().flatten().for_each(|byte| *byte = true);
        let before = hidden.start().checked_sub(1).filter(|before| line.get(*before) == Some(&0));
        let within = before.filter(|before| *before > whole.start() && !hidden.as_bytes().contains(&0));
        from = within.unwrap_or(whole.end().max(whole.start() + 1));
        if from > line.len() {
            return;
        }
    }
}

/// A pattern as it is used here: on bytes, in either case. Errors: what is wrong in it, on one line.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let built =
        RegexBuilder::new(pattern).unicode(false).case_insensitive(true).size_limit(COMPILED_BYTES).build();
    let why = |error: regex::Error| {
        let text = error.to_string();
        text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
    };
    let pattern = built.map_err(why)?;
    if pattern.is_match(b"") { Err("it matches everything".to_owned()) } else { Ok(pattern) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arguments, masked, joined by a space.
    fn masked(arguments: &[&str]) -> String {
        let line: Vec<u8> =
            arguments.iter().flat_map(|argument| [argument.as_bytes(), b"\0"].concat()).collect();
        let masked = Mask::default().apply(&line);
        assert_eq!(masked.iter().filter(|byte| **byte == 0).count(), arguments.len(), "{arguments:?}");
        String::from_utf8(masked).unwrap().trim_end_matches('\0').replace('\0', " ")
    }

    #[test]
    fn every_built_in_pattern_is_one() {
        assert_eq!(BUILT_IN_COMPILED.len(), BUILT_IN.len() + IN_ADDRESSES.len());
    }

    #[test]
    fn secrets_are_masked() {
        let cases: [(&[&str], &str); 37] = [
            (&["app", "--password=a b c"], "app --password=***"),
            (&["app", "--password", "a b", "-v"], "app --password *** -v"),
            (&["app", "--token", "--password", "x"], "app --token --password ***"),
            (&["app", "-token", "-secret", "x"], "app -token *** ***"),
            (&["app", "--password", "-x"], "app --password ***"),
            (&["env", "DB_PASSWORD=x", "app"], "env DB_PASSWORD=*** app"),
            (&["docker", "run", "-eAPI_KEY=x", "image"], "docker run -eAPI_KEY=*** image"),
            (
                &["java", "-Dspring.datasource.password=x", "-jar"],
                "java -Dspring.datasource.password=*** -jar",
            ),
            (&["sh", "-c", "app --password 'a b' --port 1"], "sh -c app --password *** --port 1"),
            (&["sh", "-c", "app --token abc; exit"], "sh -c app --token *** exit"),
            (&["sh", "-c", "export TOKEN=\"a b\" X=1"], "sh -c export TOKEN=*** X=1"),
            (&["curl", "-H", "Authorization: Bearer a.b"], "curl -H Authorization: ***"),
            (&["curl", "-H", "PRIVATE-TOKEN: glpat"], "curl -H PRIVATE-TOKEN: ***"),
            (&["curl", "-d", r#"{"password": "a \" b", "n": 1}"#], r#"curl -d {"password": *** "n": 1}"#),
            (&["curl", "http://h/?access_token=a&b=c"], "curl http://h/?access_token=***"),
            (&["git", "clone", "https://me:pw@h/x"], "git clone https://me:***@h/x"),
            (&["git", "clone", "https://0123456789abcdef@h/x"], "git clone https://***@h/x"),
            (&["app", "ghp_0123456789abcdefghij"], "app ***"),
            (&["app", "glpat-0123456789abcdefghij"], "app ***"),
            (&["app", "eyJhbGciOiJI.eyJzdWIiOiIx.c2ln"], "app ***"),
            (&["app", "-----BEGIN RSA PRIVATE KEY-----\nMII\n"], "app ***"),
            (&["sshpass", "-p", "x", "ssh", "h"], "sshpass -p *** ssh h"),
            (&["sshpass", "-px", "ssh", "h"], "sshpass -p*** ssh h"),
            (&["/usr/bin/curl", "-s", "-u", "me:pw", "h"], "/usr/bin/curl -s -u me:*** h"),
            (&["mysql", "-u", "root", "-ppw", "db"], "mysql -u root -p*** db"),
            (&["docker", "login", "-u", "me", "-p", "pw"], "docker login -u me -p ***"),
            (&["env", "MYSQL_PWD=x", "mysql"], "env MYSQL_PWD=*** mysql"),
            (&["env", "REDISCLI_AUTH=x", "redis-cli"], "env REDISCLI_AUTH=*** redis-cli"),
            (&["env", "DB_PASS=x", "app"], "env DB_PASS=*** app"),
            (&["app", "--pass", "x"], "app --pass ***"),
            (&["app", "--db-pass=x"], "app --db-pass=***"),
            (&["openssl", "rsa", "-passin", "pass:x"], "openssl rsa -passin ***"),
            (&["sh", "-c", "app --pass x -v"], "sh -c app --pass *** -v"),
            (&["app", "Server=h;Pwd=x;Database=d"], "app Server=h;Pwd=***"),
            (&["app", "AccountName=a;AccountKey=x=="], "app AccountName=a;AccountKey=***"),
            (&["curl", "--proxy-user", "me:pw", "h"], "curl --proxy-user me:*** h"),
            (&["psql", "postgres://me:p@w@h/d"], "psql postgres://me:***@h/d"),
        ];
        for (arguments, expected) in cases {
            assert_eq!(masked(arguments), expected);
        }
    }

    #[test]
    fn what_was_hidden_is_not_searched_again_and_again() {
        let line = "token=".repeat(100_000);
        assert_eq!(Mask::default().apply(line.as_bytes()), b"token=***");
        let line = b"-token\0".repeat(20_000);
        assert_eq!(Mask::default().apply(&line), [&b"-token\0"[..], &b"***\0".repeat(19_999)].concat());
    }

    #[test]
    fn what_is_no_secret_stays() {
        let cases: [&[&str]; 13] = [
            &["app", "--bypass", "x", "--compass=north"],
            &["sh", "-c", "cd /x && PWD=/y OLDPWD=/z app --author me"],
            &["docker", "run", "-v", "$PWD:/work", "image"],
            &["ctest", "--stop-on-failure", "--timeout", "10"],
            &["./provider.test", "-test.run=TestProvider", "-test.v"],
            &["python3", "-m", "http.server", "8081"],
            &["java", "-cp", "a.jar:b.jar", "org.gradle.launcher.daemon.bootstrap.GradleDaemon"],
            &["git", "clone", "ssh://git@github.com/o/r"],
            &["docker", "run", "-p", "8080:80", "nginx"],
            &["curl", "-u", "me", "http://127.0.0.1:8081/"],
            &["node", "server.js", "--port", "8081", "--host", "::1"],
            &["bash", "-c", "sleep 1; exit 0"],
            &["", "", "a"],
        ];
        for arguments in cases {
            assert_eq!(masked(arguments), arguments.join(" "));
        }
    }

    #[test]
    fn addresses_in_variables_have_no_passwords() {
        for (text, shown) in [
            ("https://me:pw@h/o/r.git", "https://me:***@h/o/r.git"),
            ("https://0123456789abcdef0123@h/o/r", "https://***@h/o/r"),
            ("https://me:p@w@h/é", "https://me:***@h/é"),
            ("ssh://git@github.com/o/r", "ssh://git@github.com/o/r"),
            ("git@github.com:o/r.git", "git@github.com:o/r.git"),
            ("token=x", "token=x"),
        ] {
            assert_eq!(without_passwords(text), shown);
        }
    }

    #[test]
    fn of_a_line_that_was_cut_off_whole_words_are_left() {
        for (line, left) in [
            (&b"git\0clone\0https://me:secre"[..], &b"git\0clone"[..]),
            (b"sh\0-c\0app eyJhbGciOiJI.eyJzd", b"sh\0-c\0app"),
            (b"onlyoneword", b""),
            (b"", b""),
        ] {
            assert_eq!(whole_words(line), left);
        }
    }

    #[test]
    fn an_operator_adds_patterns_and_may_do_without_the_built_in_ones() {
        let line = b"app\0--pin\x001234\0--password=x\0";
        let own = ["--pin\\x00([0-9]+)".to_owned()];
        assert_eq!(Mask::new(true, &own).unwrap().apply(line), b"app\0--pin\0***\0--password=***\0");
        assert_eq!(Mask::new(false, &own).unwrap().apply(line), b"app\0--pin\0***\0--password=x\0");
    }

    #[test]
    fn a_pattern_that_is_none_is_refused_with_the_reason() {
        for (pattern, why) in [("(", "unclosed group"), ("x*", "it matches everything")] {
            assert_eq!(Mask::new(true, &[pattern.to_owned()]).unwrap_err(), why);
        }
        assert!(compile(r"(?:\w{1000}){1000}").is_err(), "too large");
    }

    proptest::proptest! {
        /// Whatever stands in a line: it ends, arguments stay as many, and nothing is masked twice.
        #[test]
        fn any_bytes_are_taken(line: Vec<u8>) {
            let mask = Mask::default();
            let masked = mask.apply(&line);
            let nuls = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == 0).count();
            proptest::prop_assert_eq!(nuls(&masked), nuls(&line));
        }

        #[test]
        fn a_password_never_shows(secret in "[a-zA-Z0-9+]{8,40}", before in "[a-z -]{0,20}") {
            for line in [
                format!("app\0--password={secret}\0"),
                format!("app\0{before}\0--db-token\0{secret}\0"),
                format!("sh\0-c\0{before}; MY_SECRET='{secret}' app\0"),
                format!("curl\0https://me:{secret}@host/\0"),
            ] {
                let shown = String::from_utf8(Mask::default().apply(line.as_bytes())).unwrap();
                proptest::prop_assert!(!shown.contains(&secret), "{}", shown);
            }
        }
    }
}
