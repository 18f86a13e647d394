use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use crate::queues::Queues;

/// What encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Choice {
    /// The kernel where it can, else this process, said loudly.
    Auto,
    /// The kernel (XFRM) and nothing else: where it cannot, every call is refused with the reason.
    Kernel,
    /// This process, over a TUN device.
    Userspace,
}

/// The data plane: ESP in the kernel or over a TUN device, and holder of UDP 4500.
#[derive(Clone, Debug, Parser)]
#[command(name = "espalier-dataplane", version)]
pub(crate) struct Args {
    /// Sockets of this node's Espalier processes; made if it is not there.
    #[arg(long, default_value = "/run/espalier")]
    pub(crate) run_dir: PathBuf,
    /// What encrypts.
    #[arg(long, env = "ESPALIER_DATAPLANE", default_value = "auto")]
    pub(crate) dataplane: Choice,
    /// Name of the TUN device that pod routes point at while a peer is encrypted.
    #[arg(long, default_value = "espalier.tun")]
    pub(crate) tun: String,
    /// MTU of the TUN device in bytes: that of the pods (underlay MTU − 92 over IPv4, − 112 over IPv6).
    #[arg(long, default_value_t = 1408, value_parser = clap::value_parser!(u16).range(576..))]
    pub(crate) mtu: u16,
    /// UDP port of ESP and IKE.
    #[arg(long, default_value_t = 4500, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) listen_port: u16,
    /// Queues of the TUN device and sockets of the UDP port, each with a thread, where this process encrypts: a number from 1 to 64, or
    /// auto: 1 for up to 3 processors, else half of them, at most 8.
    #[arg(long, env = "ESPALIER_QUEUES", default_value = "1")]
    pub(crate) queues: Queues,
    /// Folder of binaries that this program lets itself be replaced with in place: root's files, named after their SHA-256.
    #[arg(long, default_value = "/var/lib/espalier/bin")]
    pub(crate) upgrade_dir: PathBuf,
    /// Goes on with what the program before left on standard input; that one gives this flag.
    #[arg(long, hide = true)]
    pub(crate) resume: bool,
    /// Says whether this program could go on with the state on standard input, and ends.
    #[arg(long, hide = true, conflicts_with = "resume")]
    pub(crate) resume_check: bool,
    /// Log filter, such as `info` or `espalier_esp_tun=trace`.
    #[arg(long, env = "ESPALIER_LOG", default_value = "info")]
    pub(crate) log: String,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Args::command().debug_assert();
        let args = Args::parse_from(["espalier-dataplane"]);
        assert_eq!(
            (args.tun.as_str(), args.mtu, args.listen_port),
            ("espalier.tun", 1408, 4500)
        );
        assert_eq!(args.dataplane, Choice::Auto);
        assert_eq!(args.queues, Queues::Number(1));
    }

    #[test]
    fn an_mtu_below_what_ip_needs_is_refused() {
        assert!(Args::try_parse_from(["espalier-dataplane", "--mtu", "500"]).is_err());
        assert!(Args::try_parse_from(["espalier-dataplane", "--listen-port", "0"]).is_err());
    }
}
