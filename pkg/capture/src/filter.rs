//! The classic BPF program that lets only the wanted frames into the socket, cut to their headers.

use socket2::SockFilter;

use crate::reader::Interfaces;

/// Octets kept of a frame: enough for six nested headers and the marker behind them.
pub(crate) const SNAP: u32 = 512;

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// Beyond this offset lie the packet's metadata (`SKF_AD_OFF`).
const METADATA: u32 = 0xffff_f000;
const PACKET_TYPE: u32 = METADATA + 4;
const INTERFACE: u32 = METADATA + 8;
const OUTGOING: u32 = 4;
/// Offset of the UDP destination port behind Ethernet and an IPv4 header without options.
const UDP_DESTINATION: u32 = 36;

/// The program: the probe on the loopback device, and frames of the wanted interfaces.
///
/// Jumps are at most 255 instructions wide, so a long interface list is left to the reader, which checks again.
pub(crate) fn program(
    interfaces: &Interfaces,
    with_outgoing: bool,
    loopback: u32,
    probe_port: u16,
) -> Vec<SockFilter> {
    let op = SockFilter::new;
    let mut program = Vec::new();
    if !with_outgoing {
        program.push(op(LOAD_WORD, 0, 0, PACKET_TYPE));
        program.push(op(JUMP_EQUAL, 0, 1, OUTGOING));
        program.push(op(RETURN, 0, 0, 0));
    }
    program.push(op(LOAD_WORD, 0, 0, INTERFACE));
    program.push(op(JUMP_EQUAL, 0, 4, loopback));
    program.push(op(LOAD_HALF, 0, 0, UDP_DESTINATION));
    program.push(op(JUMP_EQUAL, 0, 1, u32::from(probe_port)));
    program.push(op(RETURN, 0, 0, SNAP));
    program.push(op(RETURN, 0, 0, 0));
    match interfaces {
        Interfaces::Only(wanted) if wanted.len() <= 100 => {
            for index in wanted {
                program.push(op(JUMP_EQUAL, 0, 1, *index));
                program.push(op(RETURN, 0, 0, SNAP));
            }
            program.push(op(RETURN, 0, 0, 0));
        }
        Interfaces::AllBut(unwanted) if unwanted.len() <= 100 => {
            for index in unwanted {
                program.push(op(JUMP_EQUAL, 0, 1, *index));
                program.push(op(RETURN, 0, 0, 0));
            }
            program.push(op(RETURN, 0, 0, SNAP));
        }
        _ => program.push(op(RETURN, 0, 0, SNAP)),
    }
    program
}
