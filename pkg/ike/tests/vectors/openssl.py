#!/usr/bin/env python3
"""Writes openssl.json: whole messages with an SK or SKF payload, and AUTH data of method 14 (RFC 7427), made with the
Python package `cryptography` (OpenSSL). Run it in this folder; ECDSA signatures differ in each run."""

import hashlib
import hmac
import json
import struct

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305


def made(label, length):
    return hashlib.shake_256(label.encode()).digest(length)


AEADS = {"Aes256Gcm16": (32, AESGCM), "Aes128Gcm16": (16, AESGCM), "ChaCha20Poly1305": (32, ChaCha20Poly1305)}
CBCS = {"Aes128CbcSha256": (16, hashlib.sha256), "Aes256CbcSha384": (32, hashlib.sha384),
        "Aes256CbcSha512": (32, hashlib.sha512)}


def prefix(label, fields, body):
    payload = 4 + len(fields) + body
    outer, first = (53 if fields else 46), 35
    header = made(label + " SPIs", 16) + struct.pack("!BBBBII", outer, 0x20, 35, 0x08, 1, 28 + payload)
    return header + struct.pack("!BBH", first, 0, payload) + fields


def message(label, cipher, fields, inner, padding, iv):
    """IKE header, encrypted payload: `fields` are those of SKF. Reproducible is what the first sealing must give."""
    key_len, aead = AEADS[cipher]
    keymat = made(label, key_len + 4)
    aad = prefix(label, fields, 8 + len(inner) + len(padding) + 1 + 16)
    text = inner + padding + bytes([len(padding)])
    sealed = aead(keymat[:-4]).encrypt(keymat[-4:] + iv, text, aad)
    return {"cipher": cipher, "keymat": keymat, "spi_i": aad[:8], "spi_r": aad[8:16], "fields": fields, "inner": inner,
            "reproducible": iv == bytes(8), "aad_len": len(aad), "message": aad + iv + sealed}


def cbc_message(label, cipher, fields, inner, padding=None):
    """The same with AES-CBC and HMAC, key and integrity key in one. By itself the IV is the encrypted counter 0, and the
    padding is the shortest, of zeros."""
    key_len, digest = CBCS[cipher]
    keymat = made(label, key_len + digest().digest_size)
    key, icv_len = keymat[:key_len], digest().digest_size // 2
    text = inner + (bytes(-(len(inner) + 1) % 16) if padding is None else padding)
    text += bytes([len(text) - len(inner)])

    def encrypt(mode, data):
        encryptor = Cipher(algorithms.AES(key), mode).encryptor()
        return encryptor.update(data) + encryptor.finalize()

    iv = encrypt(modes.ECB(), bytes(16)) if padding is None else made("IV", 16)
    signed = prefix(label, fields, 16 + len(text) + icv_len) + iv + encrypt(modes.CBC(iv), text)
    return {"cipher": cipher, "keymat": keymat, "spi_i": signed[:8], "spi_r": signed[8:16], "fields": fields,
            "inner": inner, "reproducible": padding is None, "aad_len": 32 + len(fields),
            "message": signed + hmac.new(keymat[key_len:], signed, digest).digest()[:icv_len]}


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
        message("aes256", "Aes256Gcm16", b"", made("inner", 100), b"", bytes(8)),
        message("aes128", "Aes128Gcm16", b"", made("inner", 100), b"", bytes(8)),
        message("empty", "Aes256Gcm16", b"", b"", b"", bytes(8)),
        message("fragment", "Aes256Gcm16", struct.pack("!HH", 1, 3), made("inner", 50), b"", bytes(8)),
        message("chacha20", "ChaCha20Poly1305", b"", made("inner", 100), b"", bytes(8)),
        message("padded", "Aes256Gcm16", b"", made("inner", 33), made("padding", 6), made("IV", 8)),
        message("padding only", "Aes128Gcm16", b"", b"", bytes(255), made("IV", 8)),
        cbc_message("cbc128", "Aes128CbcSha256", b"", made("inner", 100)),
        cbc_message("cbc256", "Aes256CbcSha384", b"", made("inner", 79)),
        cbc_message("cbc fragment", "Aes256CbcSha512", struct.pack("!HH", 1, 3), made("inner", 50)),
        cbc_message("cbc padded", "Aes256CbcSha512", b"", made("inner", 33), made("padding", 6 + 16 * 5 + 8)),
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
