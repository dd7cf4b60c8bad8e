//! Compiles our .proto files with protox, so that no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/argosy/v1/session.proto";
    println!("cargo:rerun-if-changed={file}");
    let descriptors = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure()
        .btree_map(".") // an order that can reach a log or a hash must not be random
        .compile_fds(descriptors)?;
    Ok(())
}
