#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| egress_fuzz::run(
    egress_tests::fuzz::Target::PodPacket,
    data
));
