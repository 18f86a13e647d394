//! Compiles the protobuf files without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["dataplane.proto", "agent.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .skip_debug(["espalier.dataplane.v1.Sa"]) // holds a key: redacted by hand in src/convert.rs
        .compile_fds(files)?;
    Ok(())
}
