//! Whatever the fuzzer was given to begin with, and whatever it once found, goes through every parser again (`fuzz/`).

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::path::Path;

#[test]
fn every_seed_goes_through_its_parser() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, target) in fuzz::TARGETS {
        let mut seeds = 0;
        for seed in fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("{name}: {error}")) {
            let path = seed.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let done = std::panic::catch_unwind(|| target(&bytes));
            assert!(done.is_ok(), "{}", path.display());
            seeds += 1;
        }
        assert!(seeds > 0, "{name} has no seeds");
    }
}
