//! `espalier-ike-probe CONFIG.json`: one IKE endpoint with the kernel's IPsec below it. Commands on stdin, events on stdout.

fn main() -> anyhow::Result<()> {
    espalier_interop::probe::run()
}
