//! `doctor`: what works, and what is lost where it does not.

use serde::Serialize;

use crate::model::escape::Escaped;

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it works.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What is lost, and how to get it; null where it works.
    pub remedy: Option<String>,
}

/// Checks for people.
pub fn checks(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let mark = if check.ok { "ok  " } else { "LOST" };
        text += &format!("{mark}  {:<22}{}\n", Escaped(&check.name).to_string(), Escaped(&check.found));
        if let Some(remedy) = &check.remedy {
            text += &format!("      {:<22}{}\n", "", Escaped(remedy));
        }
    }
    let lost = checks.iter().filter(|check| !check.ok).count();
    text += &match lost {
        0 => "\nNothing is missing that could be mended here.\n".to_owned(),
        lost => format!("\n{lost} of {} are missing; answers say where that matters.\n", checks.len()),
    };
    text
}
