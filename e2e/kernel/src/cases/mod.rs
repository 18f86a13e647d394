//! The cases, by what they are about.

mod adopt;
mod cpus;
mod external;
mod faults;
mod forms;
mod invariants;
mod keys;
mod kubernetes;
mod life;
mod reader;
mod shapes;

use anyhow::Result;
use espalier_e2e::Plane;

use crate::ground::Ground;
use crate::matrix::{Case, Set};

/// What a case does; `Ok` is what there is to say of a pass.
pub(crate) type Run = fn(&mut Ground<'_>) -> Result<String>;

const fn of(set: Set, name: &'static str, run: Run) -> Case {
    Case {
        name,
        set,
        run,
        alone: false,
    }
}

const fn core(name: &'static str, run: Run) -> Case {
    of(Set::Core, name, run)
}

const fn once(name: &'static str, run: Run) -> Case {
    of(Set::Once, name, run)
}

const fn named(name: &'static str, run: Run) -> Case {
    of(Set::Named, name, run)
}

/// Data planes of the two nodes; the first has the lower identity.
const KERNEL_FIRST: [Plane; 2] = [Plane::Kernel, Plane::Userspace];
const USERSPACE_FIRST: [Plane; 2] = [Plane::Userspace, Plane::Kernel];
const NATIVE: &[&str] = &["overlay: None"];

/// All of them; the slow ones first, the others fill their waits.
pub(crate) const ALL: &[Case] = &[
    core("rekeys", life::rekeys),
    once("esp_dropped_falls_back_to_udp", forms::esp_dropped),
    once("agent_killed_ten_times", faults::agent_killed_ten_times),
    core("toggles", |on| life::toggles(on, &[], None)),
    core("toggles_native", |on| life::toggles(on, NATIVE, None)),
    core("toggles_mixed", |on| {
        life::toggles(on, &[], Some(KERNEL_FIRST))
    }),
    core("toggles_mixed_native", |on| {
        life::toggles(on, NATIVE, Some(KERNEL_FIRST))
    }),
    core("basic", life::basic),
    core("dataplane_killed", faults::dataplane_killed),
    core("reboot", faults::reboot),
    core("states_flushed_under_load", faults::flushed_under_load),
    core("udp", forms::udp),
    core("ipip_udp", forms::ipip_udp),
    core("mixed_vxlan_kernel_first", |on| {
        forms::mixed(on, "overlay: VXLAN", KERNEL_FIRST)
    }),
    core("mixed_vxlan_userspace_first", |on| {
        forms::mixed(on, "overlay: VXLAN", USERSPACE_FIRST)
    }),
    core("mixed_ipip_kernel_first", |on| {
        forms::mixed(on, "overlay: IPIP", KERNEL_FIRST)
    }),
    core("mixed_ipip_userspace_first", |on| {
        forms::mixed(on, "overlay: IPIP", USERSPACE_FIRST)
    }),
    core("mixed_native_kernel_first", |on| {
        forms::mixed(on, "overlay: None", KERNEL_FIRST)
    }),
    core("mixed_native_userspace_first", |on| {
        forms::mixed(on, "overlay: None", USERSPACE_FIRST)
    }),
    core("mixed_raw_vxlan_kernel_first", |on| {
        forms::mixed_raw(on, "overlay: VXLAN", KERNEL_FIRST)
    }),
    core("mixed_raw_vxlan_userspace_first", |on| {
        forms::mixed_raw(on, "overlay: VXLAN", USERSPACE_FIRST)
    }),
    core("mixed_raw_ipip_kernel_first", |on| {
        forms::mixed_raw(on, "overlay: IPIP", KERNEL_FIRST)
    }),
    core("mixed_raw_native_kernel_first", |on| {
        forms::mixed_raw(on, "overlay: None", KERNEL_FIRST)
    }),
    core("ah", forms::ah),
    core("gmac", forms::gmac),
    core("chacha20_poly1305", forms::chacha),
    core("aes_128_gcm", forms::aes128),
    core("ipip", forms::ipip),
    core("native_tunnel", forms::native),
    core("ipv6_underlay", shapes::ipv6_underlay),
    core("dual_stack_pods", shapes::dual_stack),
    once("mtu_is_constant_vxlan", shapes::mtu_vxlan),
    once("mtu_is_constant_ipip", shapes::mtu_ipip),
    once("mtu_is_constant_native", shapes::mtu_native),
    core("path_mtu_vxlan", shapes::path_mtu_vxlan),
    core("path_mtu_ipip", shapes::path_mtu_ipip),
    core("path_mtu_native", shapes::path_mtu_native),
    once("on_demand", life::on_demand),
    core("s1_all_dead_and_flushed", invariants::s1_flushed),
    core("s1_all_dead_and_flushed_ipv6", invariants::s1_flushed_ipv6),
    core("s1_all_dead_and_flushed_ipip", invariants::s1_flushed_ipip),
    core(
        "s1_all_dead_and_flushed_native",
        invariants::s1_flushed_native,
    ),
    core("s2_clear_overlay_is_refused", invariants::s2),
    core("s3_keys_are_unique", keys::s3),
    core("s4_counters_never_go_back", keys::s4),
    core("s7_host_traffic_needs_no_tunnel", invariants::s7),
    Case {
        alone: true,
        ..once("clock_jumps", faults::clock_jumps)
    },
    Case {
        alone: true,
        ..once("s8_no_esp_is_not_ready", invariants::s8)
    },
    core("external_gateway", external::gateway),
    once("external_gateway_certificate", external::certificate),
    core("external_gateway_s1_nothing_in_clear", external::s1),
    once("external_gateway_udp", external::udp),
    once("external_gateway_native", external::native),
    once("external_gateway_s8_userspace_refuses", external::s8),
    core("foreign_states_survive", adopt::foreign_survive),
    core("quiet_agent_writes_nothing", adopt::quiet),
    once("node_removed_while_the_agent_is_down", adopt::node_removed),
    core("another_reader_decrypts_the_wire", reader::decrypts),
    named("kubernetes_toggles", kubernetes::toggles),
    named("kubernetes_api_server_away", kubernetes::api_server_away),
    of(Set::PerCpu, "per_cpu_states", cpus::per_cpu),
];
