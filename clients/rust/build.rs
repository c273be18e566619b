//! Generates the messages and clients from the descriptors of the service. Needs no protoc.

use prost::Message;
use prost_types::FileDescriptorSet;

/// `python -m storeapi.files descriptors` prints the path of the same file.
const DESCRIPTORS: &str = "../python/src/storeapi/v1/descriptors.binpb";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed={DESCRIPTORS}");
    let mut descriptors = FileDescriptorSet::decode(&*std::fs::read(DESCRIPTORS)?)?;
    // The comments of google.rpc have examples in JSON, which rustdoc would compile.
    let others = descriptors.file.iter_mut().filter(|it| it.package() != "storeapi.v1");
    others.for_each(|it| it.source_code_info = None);
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}
