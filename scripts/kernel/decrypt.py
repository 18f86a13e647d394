#!/usr/bin/env python3
"""decrypt.py CAPTURE STATES: opens every ESP packet of a pcap file with scapy, another implementation of ESP, and the keys
that the kernel shows; looks for pods' packets in what comes out. Prints {"opened", "failed", "unknown", "pods", "nodes"}."""
import json
import sys

from scapy.config import conf
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.utils import rdpcap

MARKER = b"espalier-e2e-pod"
ALGORITHMS = {
    "rfc4106(gcm(aes))": "AES-GCM",
    "rfc7539esp(chacha20,poly1305)": "CHACHA20-POLY1305",
}


def association(state):
    """scapy's, from the state's fields; the last four octets of the key are its salt."""
    return SecurityAssociation(
        ESP, spi=state["spi"], crypt_algo=ALGORITHMS[state["algorithm"]],
        crypt_key=bytes.fromhex(state["key"]), esn_en=True, esn=state["sent"] >> 32)


def esp_packet(packet):
    """The IP packet with ESP directly in it; None: it is something else."""
    ip = packet.getlayer(IP) or packet.getlayer(IPv6)
    if ip is None:
        return None
    if isinstance(ip.payload, ESP):
        return ip
    udp = ip.getlayer(UDP)
    if udp is None or 4500 not in (udp.sport, udp.dport):
        return None
    payload = bytes(udp.payload)
    if len(payload) < 8 or payload[:4] == bytes(4):
        return None
    bare = ip.copy()
    bare.remove_payload()
    if isinstance(bare, IP):
        bare.proto, bare.len, bare.chksum = 50, None, None
    else:
        bare.nh, bare.plen = 50, None
    return bare.__class__(bytes(bare / payload))


def pod_packet(inner):
    """The pod's IP packet in VXLAN (RFC 7348) or directly in IP."""
    vxlan = inner.getlayer(VXLAN)
    if vxlan is None:
        udp = inner.getlayer(UDP)
        if udp is None or udp.dport != 4789:
            return None
        vxlan = VXLAN(bytes(udp.payload))
    frame = vxlan.getlayer(Ether)
    return None if frame is None else frame.getlayer(IP) or frame.getlayer(IPv6)


def main():
    conf.verb = 0
    capture, states = sys.argv[1:]
    with open(states, encoding="utf-8") as file:
        states = json.load(file)
    known = {(state["src"], state["dst"], state["spi"]): association(state) for state in states}
    found = {"opened": 0, "failed": 0, "unknown": 0, "pods": 0, "nodes": []}
    nodes = set()
    for packet in rdpcap(capture):
        esp = esp_packet(packet)
        if esp is None:
            continue
        association_ = known.get((esp.src, esp.dst, esp[ESP].spi))
        if association_ is None:
            found["unknown"] += 1
            continue
        try:
            inner = association_.decrypt(esp, esn_en=True)
        except Exception as error:  # whatever it is, it is counted
            print(f"{esp.src} > {esp.dst}: {error!r}", file=sys.stderr)
            found["failed"] += 1
            continue
        found["opened"] += 1
        pod = pod_packet(inner)
        if pod is not None and MARKER in bytes(pod):
            found["pods"] += 1
            nodes.add(f"{pod.src} > {pod.dst}")
    found["nodes"] = sorted(nodes)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
