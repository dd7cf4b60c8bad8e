#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| argosy_shard_loader::fuzzing::picture(bytes));
