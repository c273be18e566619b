//! Generates the messages and clients from the descriptors of the service. Needs no protoc.

use std::fmt::Write;
use std::path::Path;

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
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("writes.rs"), writes(&descriptors))?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    Ok(())
}

/// Implements the trait `Write` for each request that has a `request_id`.
fn writes(descriptors: &FileDescriptorSet) -> String {
    let mut code = String::new();
    for message in descriptors.file.iter().filter(|it| it.package() == "storeapi.v1").flat_map(|it| &it.message_type) {
        if message.name().ends_with("Request") && message.field.iter().any(|it| it.name() == "request_id") {
            let body = "fn request_id(&mut self) -> &mut String { &mut self.request_id }";
            writeln!(code, "impl Write for proto::{} {{ {body} }}", message.name()).expect("a string grows");
        }
    }
    code
}
