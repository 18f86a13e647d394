#!/usr/bin/env python3
"""Writes cavp.json: what Libreswan's own key derivation (its test program `cavp`) answers. Run it in this folder on
Debian: the package is downloaded and unpacked into a temporary folder, nothing is installed."""

import hashlib
import json
import pathlib
import subprocess
import tempfile

HASHES = {"SHA-256": ("HmacSha256", 32), "SHA-384": ("HmacSha384", 48), "SHA-512": ("HmacSha512", 64)}


def made(label, length):
    return hashlib.shake_256(label.encode()).hexdigest(length)


def cavp(folder):
    subprocess.run(["apt-get", "download", "-q", "libreswan"], cwd=folder, check=True, capture_output=True)
    package = next(pathlib.Path(folder).glob("libreswan_*.deb"))
    subprocess.run(["dpkg", "-x", package, folder], check=True)
    return package.name.split("_")[1], pathlib.Path(folder, "usr/libexec/ipsec/cavp")


def answer(program, hash_name, nonce_len, number):
    # SK_d, SK_ei, SK_er, SK_pi, SK_pr with AES-256-GCM: 3 outputs of the function and 2 × 36 bytes.
    bits = 8 * (3 * HASHES[hash_name][1] + 2 * 36)
    label = f"cavp {hash_name} {nonce_len}"
    given = {"gir": made(label + " g^ir", 32), "girNew": made(label + " g^ir new", 32),
             "nInit": made(label + " Ni", nonce_len), "nResp": made(label + " Nr", nonce_len),
             "spiInit": made(label + " SPIi", 8), "spiResp": made(label + " SPIr", 8)}
    arguments = [part for key, value in given.items() for part in ("-" + key, value)]
    command = [program, "-json", "-v2", "-hashAlg", hash_name, "-derivedKeyingMaterialLength", str(bits),
               "-tcId", str(number)] + arguments
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"prf": HASHES[hash_name][0]} | given | json.loads(shown[shown.index("{"):])


with tempfile.TemporaryDirectory() as folder:
    version, program = cavp(folder)
    inputs = [(name, length) for name in HASHES for length in (16, 32, 128)]
    cases = [answer(program, name, length, number) for number, (name, length) in enumerate(inputs)]
with open("cavp.json", "w") as out:
    json.dump({"libreswan": version, "cases": cases}, out, indent=1)
    out.write("\n")
