#![doc = "libFuzzer binary of the target of the same name."]
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| espalier_fuzz::esp_raw(data));
