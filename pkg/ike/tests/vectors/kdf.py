#!/usr/bin/env python3
"""Writes kdf.json: IKEv2 key derivation and PSK AUTH (RFC 7296 §2.13 to §2.18, RFC 5282, RFC 8784), computed with Python's
standard library alone, from the RFC's formulas. Run it in this folder; the result is always the same."""

import hashlib
import hmac
import json

PRFS = {"HmacSha256": hashlib.sha256, "HmacSha384": hashlib.sha384, "HmacSha512": hashlib.sha512}
# Bytes of SK_e and of SK_a.
IKE_CIPHERS = {"Aes256Gcm16": (36, 0), "Aes128Gcm16": (20, 0), "Aes256CbcSha384": (32, 48)}
ESP_SUITES = {"Aes256Gcm16": 36, "Aes128Gcm16": 20, "ChaCha20Poly1305": 36}


def prf(name, key, data):
    return hmac.new(key, data, PRFS[name]).digest()


def prf_plus(name, key, seed, length):
    out, block, counter = b"", b"", 1
    while len(out) < length:
        block = prf(name, key, block + seed + bytes([counter]))
        out += block
        counter += 1
    return out[:length]


def cut(data, *lengths):
    parts = []
    for length in lengths:
        parts.append(data[:length])
        data = data[length:]
    assert not data
    return parts


def made(label, length):
    """Bytes that look random and are the same in each run."""
    return hashlib.shake_256(label.encode()).digest(length)


def ike_keys(name, cipher, skeyseed, ni, nr, spi_i, spi_r):
    d, (e, a) = PRFS[name]().digest_size, IKE_CIPHERS[cipher]
    keymat = prf_plus(name, skeyseed, ni + nr + spi_i + spi_r, 3 * d + 2 * a + 2 * e)
    sk_d, sk_ai, sk_ar, sk_ei, sk_er, sk_pi, sk_pr = cut(keymat, d, a, a, e, e, d, d)
    # SK_a goes with SK_e to the one sealer or opener that uses both.
    return {"sk_d": sk_d, "sk_ei": sk_ei + sk_ai, "sk_er": sk_er + sk_ar, "sk_pi": sk_pi, "sk_pr": sk_pr}


def child(name, sk_d, shared, ni, nr, suite):
    length = ESP_SUITES[suite]
    first, second = cut(prf_plus(name, sk_d, shared + ni + nr, 2 * length), length, length)
    return {"suite": suite, "initiator_to_responder": first, "responder_to_initiator": second}


def auth(name, keys, ni, nr):
    psk, init, resp = made("psk", 32), made("IKE_SA_INIT request", 250), made("IKE_SA_INIT response", 240)
    id_i, id_r = b"\x02\0\0\0node-a", b"\x02\0\0\0node-b"
    octets_i = init + nr + prf(name, keys["sk_pi"], id_i)
    octets_r = resp + ni + prf(name, keys["sk_pr"], id_r)
    padded = prf(name, psk, b"Key Pad for IKEv2")
    return {"psk": psk, "init": init, "resp": resp, "id_i": id_i, "id_r": id_r, "octets_i": octets_i,
            "octets_r": octets_r, "auth_i": prf(name, padded, octets_i), "auth_r": prf(name, padded, octets_r)}


def ppk(name, keys):
    """RFC 8784 section 3."""
    key = made(f"{name} PPK", 40)
    mixed = {which: prf_plus(name, key, keys[which], len(keys[which])) for which in ("sk_d", "sk_pi", "sk_pr")}
    return {"key": key} | mixed


def case(name, cipher, nonce_len):
    def some(what, length):
        return made(f"{name} {cipher} {what}", length)

    ni, nr, shared = some("Ni", nonce_len), some("Nr", nonce_len), some("g^ir", 32)
    spi_i, spi_r = some("SPIi", 8), some("SPIr", 8)
    skeyseed = prf(name, ni + nr, shared)
    keys = ike_keys(name, cipher, skeyseed, ni, nr, spi_i, spi_r)
    new = {"ni": some("new Ni", 48), "nr": some("new Nr", 48), "shared": some("new g^ir", 32),
           "spi_i": some("new SPIi", 8), "spi_r": some("new SPIr", 8)}
    # A rekey may agree on another function: the old one makes SKEYSEED, the new one the keys.
    new_prf = "HmacSha512" if name == "HmacSha256" else "HmacSha256"
    rekey_seed = prf(name, keys["sk_d"], new["shared"] + new["ni"] + new["nr"])
    rekeyed = ike_keys(new_prf, cipher, rekey_seed, new["ni"], new["nr"], new["spi_i"], new["spi_r"])
    return {
        "prf": name, "cipher": cipher, "ni": ni, "nr": nr, "shared": shared, "spi_i": spi_i, "spi_r": spi_r,
        "skeyseed": skeyseed, "keys": keys,
        "child": [child(name, keys["sk_d"], b"", ni, nr, suite) for suite in ESP_SUITES],
        "child_pfs": [child(name, keys["sk_d"], new["shared"], new["ni"], new["nr"], suite) for suite in ESP_SUITES],
        "rekey": new | {"prf": new_prf, "skeyseed": rekey_seed, "keys": rekeyed},
        "auth": auth(name, keys, ni, nr),
        "ppk": ppk(name, keys),
    }


cases = [case(name, cipher, 32) for name in PRFS for cipher in IKE_CIPHERS]
cases.append(case("HmacSha256", "Aes256Gcm16", 256))
plus = [{"prf": name, "key": made("key", 7), "seed": made("seed", 21), "out": prf_plus(name, made("key", 7), made("seed", 21), n)}
        for name in PRFS for n in (1, PRFS[name]().digest_size, 255 * PRFS[name]().digest_size)]
with open("kdf.json", "w") as out:
    json.dump({"cases": cases, "plus": plus}, out, default=bytes.hex, indent=1)
    out.write("\n")
