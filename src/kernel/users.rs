//! Names of users, asked once each (getpwuid_r(3)).

use std::collections::HashMap;
use std::sync::Mutex;

use nix::unistd::{Uid, User};

/// A memory of user names: the name service may be slow, and a host has few users.
#[derive(Debug, Default)]
pub struct Users(Mutex<HashMap<u32, Option<String>>>);

impl Users {
    /// The name of a user id, `None` where the name service has none.
    pub fn name(&self, uid: u32) -> Option<String> {
        let known = |names: &HashMap<u32, Option<String>>| names.get(&uid).cloned();
        if let Some(name) = self.0.lock().ok().and_then(|names| known(&names)) {
            return name;
        }
        let name = User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| user.name);
        if let Ok(mut names) = self.0.lock() {
            names.insert(uid, name.clone());
        }
        name
    }
}
