//! Compiles the protobuf file without protoc; peers and SAs are those of the RPC.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=../rpc/proto");
    let files = protox::compile(["state.proto"], ["proto", "../rpc/proto"])?;
    tonic_prost_build::configure()
        .extern_path(".espalier.dataplane.v1", "::espalier_rpc::dataplane")
        .compile_fds(files)?;
    Ok(())
}
