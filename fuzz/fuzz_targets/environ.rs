#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sniffer_fuzz::environ(bytes));
