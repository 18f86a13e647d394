"""Makes esp.json: ESP packets sealed by scapy, to compare ours with byte by byte.

    python3 -m venv venv && venv/bin/pip install scapy cryptography
    venv/bin/python make.py > esp.json
"""

import json
import struct

from scapy.all import IP, UDP, Ether, IPv6, Raw, raw
from scapy.layers.inet6 import ICMPv6EchoRequest
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.vxlan import VXLAN

HOSTS4 = dict(src="192.0.2.11", dst="192.0.2.12")
HOSTS6 = dict(src="2001:db8::11", dst="2001:db8::12")
LOCAL_MAC, REMOTE_MAC = "02:a1:a2:a3:a4:a5", "02:b1:b2:b3:b4:b5"
SPI = 0xC0FFEE01


def key(algorithm):
    length = {"AES-128-GCM-16": 16, "AES-256-GCM-16": 32, "ChaCha20-Poly1305": 32}[algorithm]
    return bytes((7 * i + length) & 0xFF for i in range(length + 4))


def pod_packet(family, size):
    payload = Raw(bytes(i & 0xFF for i in range(size)))
    if family == 4:
        packet = IP(src="10.244.1.2", dst="10.244.2.3", ttl=63, id=0x1234, tos=0xB9) / UDP(sport=5001, dport=7) / payload
    else:
        packet = IPv6(src="fd00:1::2", dst="fd00:2::3", hlim=63, tc=0xB9) / ICMPv6EchoRequest(id=7, seq=9) / payload
    return raw(packet)


def vxlan(outer, pod, sport):
    family = IP if pod[0] >> 4 == 4 else IPv6
    udp = UDP(sport=sport, dport=4789, **({"chksum": 0} if isinstance(outer, IP) else {}))
    ether = Ether(src=LOCAL_MAC, dst=REMOTE_MAC)
    return outer / udp / VXLAN(vni=4789, flags=8) / ether / family(pod)


def seal(packet, algorithm, esn, sequence):
    cipher = "CHACHA20-POLY1305" if algorithm.startswith("ChaCha") else "AES-GCM"
    sa = SecurityAssociation(ESP, spi=SPI, crypt_algo=cipher, crypt_key=key(algorithm), esn_en=esn, esn=sequence >> 32)
    return raw(sa.encrypt(packet, seq_num=sequence & 0xFFFFFFFF, iv=struct.pack("!Q", sequence))[ESP])


def case(algorithm, esn, sequence, overlay, underlay, family, size):
    pod = pod_packet(family, size)
    outer = IP(**HOSTS4) if underlay == 4 else IPv6(**HOSTS6)
    if overlay == "vxlan":
        # The source port is a hash of ours: scapy frames with the one that the test then expects to be parsed, not made.
        plain = vxlan(outer, pod, 50000)
        next_header = 17
    else:
        plain = outer / (IP(pod) if family == 4 else IPv6(pod))
        next_header = 4 if family == 4 else 41
    plain = plain.__class__(raw(plain))
    hosts = HOSTS4 if underlay == 4 else HOSTS6
    return {
        "algorithm": algorithm,
        "esn": esn,
        "sequence": sequence,
        "spi": SPI,
        "key": key(algorithm).hex(),
        "overlay": overlay,
        "local": hosts["src"],
        "remote": hosts["dst"],
        "local_mac": LOCAL_MAC.replace(":", ""),
        "remote_mac": REMOTE_MAC.replace(":", ""),
        "next_header": next_header,
        "pod_packet": pod.hex(),
        "payload": raw(plain.payload).hex(),
        "esp": seal(plain, algorithm, esn, sequence).hex(),
    }


CASES = [
    ("AES-256-GCM-16", True, 1, "vxlan", 4, 4, 0),
    ("AES-256-GCM-16", True, 1, "ipip", 4, 4, 1),
    ("AES-256-GCM-16", True, 2**32 + 5, "vxlan", 4, 4, 64),
    ("AES-256-GCM-16", True, 2**32 - 1, "ipip", 4, 4, 63),
    ("AES-256-GCM-16", True, 7 * 2**32 + 1, "ipip", 4, 6, 62),
    ("AES-256-GCM-16", True, 2**40 + 3, "vxlan", 6, 6, 65),
    ("AES-256-GCM-16", True, 3, "vxlan", 6, 4, 66),
    ("AES-256-GCM-16", False, 2**32 - 1, "vxlan", 4, 6, 1300),
    ("AES-256-GCM-16", False, 77, "ipip", 6, 4, 2),
    ("AES-128-GCM-16", True, 2**33 + 9, "vxlan", 4, 4, 33),
    ("AES-128-GCM-16", True, 1, "ipip", 6, 6, 3),
    ("AES-128-GCM-16", False, 1, "vxlan", 4, 4, 1380),
    ("AES-128-GCM-16", False, 2**31, "ipip", 4, 4, 17),
    ("ChaCha20-Poly1305", True, 2**32 + 1, "vxlan", 4, 4, 48),
    ("ChaCha20-Poly1305", False, 5, "ipip", 4, 6, 19),
]

print(json.dumps([case(*arguments) for arguments in CASES], indent=1))
