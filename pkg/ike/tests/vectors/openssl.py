#!/usr/bin/env python3
"""Writes openssl.json: whole messages with an SK or SKF payload, and AUTH data of method 14 (RFC 7427), made with the
Python package `cryptography` (OpenSSL). Run it in this folder; ECDSA signatures differ in each run."""

import hashlib
import hmac
import json
import struct

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


def made(label, length):
    return hashlib.shake_256(label.encode()).digest(length)


def message(label, key_len, fields, inner, padding, iv):
    """IKE header, encrypted payload: `fields` are those of SKF."""
    keymat = made(label, key_len + 4)
    body = 8 + len(inner) + len(padding) + 1 + 16
    payload = 4 + len(fields) + body
    outer, first = (53 if fields else 46), 35
    header = made(label + " SPIs", 16) + struct.pack("!BBBBII", outer, 0x20, 35, 0x08, 1, 28 + payload)
    aad = header + struct.pack("!BBH", first, 0, payload) + fields
    text = inner + padding + bytes([len(padding)])
    sealed = AESGCM(keymat[:-4]).encrypt(keymat[-4:] + iv, text, aad)
    return {"keymat": keymat, "spi_i": aad[:8], "spi_r": aad[8:16], "fields": fields, "iv": iv, "inner": inner,
            "padding": padding, "aad_len": len(aad), "message": aad + iv + sealed}


def signature(scheme, key, identifier, sign):
    octets = [made("IKE_SA_INIT", 200), made("nonce", 32), made("SK_p", 32), b"\x02\0\0\0node-a"]
    init, nonce, sk_p, id_body = octets
    signed = init + nonce + hmac.new(sk_p, id_body, hashlib.sha256).digest()
    spki = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    data = bytes([len(identifier)]) + identifier + sign(signed)
    return {"scheme": scheme, "init": init, "nonce": nonce, "sk_p": sk_p, "id_body": id_body, "spki": spki, "auth": data}


p256, p384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
ed = ed25519.Ed25519PrivateKey.from_private_bytes(made("ed25519", 32))
vectors = {
    "sealed": [
        message("aes256", 32, b"", made("inner", 100), b"", bytes(8)),
        message("aes128", 16, b"", made("inner", 100), b"", bytes(8)),
        message("empty", 32, b"", b"", b"", bytes(8)),
        message("fragment", 32, struct.pack("!HH", 1, 3), made("inner", 50), b"", bytes(8)),
        message("padded", 32, b"", made("inner", 33), made("padding", 6), made("IV", 8)),
        message("padding only", 16, b"", b"", bytes(255), made("IV", 8)),
    ],
    "signed": [
        signature("EcdsaP256Sha256", p256, bytes.fromhex("300a06082a8648ce3d040302"),
                  lambda octets: p256.sign(octets, ec.ECDSA(hashes.SHA256()))),
        signature("EcdsaP384Sha384", p384, bytes.fromhex("300a06082a8648ce3d040303"),
                  lambda octets: p384.sign(octets, ec.ECDSA(hashes.SHA384()))),
        signature("Ed25519", ed, bytes.fromhex("300506032b6570"), ed.sign),
    ],
}
with open("openssl.json", "w") as out:
    json.dump(vectors, out, default=bytes.hex, indent=1)
    out.write("\n")
