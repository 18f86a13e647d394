#!/usr/bin/env python3
"""Writes an OCI archive of one layer: the given programs in /usr/local/bin, an /etc/passwd, and empty folders to mount on.

Nothing in it depends on when or where it was made: the same programs give the same bytes."""
import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import tarfile

FOLDERS = {"etc": 0o755, "run": 0o755, "tmp": 0o1777, "usr": 0o755, "usr/local": 0o755, "usr/local/bin": 0o755, "var": 0o755, "var/lib": 0o755}
# The user that the controller and whatever is not told otherwise run as. The agent and the data plane run as root, for the
# kernel's and the host's files.
USER = 65532
FILES = {
    "etc/passwd": f"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:{USER}:{USER}:nonroot:/:/sbin/nologin\n",
    "etc/group": f"root:x:0:\nnonroot:x:{USER}:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
MEDIA = "application/vnd.oci.image."


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--reference", required=True, help="name:tag under which it is imported")
    parser.add_argument("--version", required=True)
    parser.add_argument("--architecture", default=ARCHITECTURES.get(platform.machine()), help="amd64 or arm64; default: this machine's")
    parser.add_argument("programs", nargs="+")
    args = parser.parse_args()
    if not args.architecture:
        parser.error(f"--architecture is needed: {platform.machine()} is not known")
    write_archive(args.output, image(args))


def image(args):
    """The archive's files by name."""
    layer = layer_of(args.programs)
    packed = gzip.compress(layer, 6, mtime=0)
    config = as_json({
        "architecture": args.architecture,
        "os": "linux",
        "config": {
            "User": f"{USER}:{USER}",
            "Env": ["PATH=/usr/local/bin"],
            "Labels": {"org.opencontainers.image.title": "espalier", "org.opencontainers.image.version": args.version,
                       "org.opencontainers.image.licenses": "Apache-2.0"},
        },
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        "history": [{"created_by": "scripts/image.sh"}],
    })
    manifest = as_json({
        "schemaVersion": 2,
        "mediaType": MEDIA + "manifest.v1+json",
        "config": descriptor("config.v1+json", config),
        "layers": [descriptor("layer.v1.tar+gzip", packed)],
    })
    entry = descriptor("manifest.v1+json", manifest)
    entry["platform"] = {"architecture": args.architecture, "os": "linux"}
    entry["annotations"] = {"io.containerd.image.name": args.reference, "org.opencontainers.image.ref.name": args.reference}
    blobs = {"blobs/sha256/" + digest(blob).removeprefix("sha256:"): blob for blob in (config, packed, manifest)}
    return {"oci-layout": as_json({"imageLayoutVersion": "1.0.0"}), "index.json": as_json({"schemaVersion": 2, "manifests": [entry]})} | blobs


def layer_of(programs):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, mode in FOLDERS.items():
            folder = tarfile.TarInfo(name + "/")
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
        for name, text in FILES.items():
            add(tar, name, text.encode(), 0o644)
        for path in sorted(programs):
            with open(path, "rb") as file:
                add(tar, "usr/local/bin/" + os.path.basename(path), file.read(), 0o755)
    return out.getvalue()


def write_archive(path, files):
    # Whoever reads the path sees no half of it.
    with tarfile.open(path + ".new", "w") as tar:
        for name, data in files.items():
            add(tar, name, data, 0o644)
    os.replace(path + ".new", path)


def add(tar, name, data, mode):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    tar.addfile(entry, io.BytesIO(data))


def descriptor(kind, blob):
    return {"mediaType": MEDIA + kind, "digest": digest(blob), "size": len(blob)}


def digest(blob):
    return "sha256:" + hashlib.sha256(blob).hexdigest()


def as_json(value):
    return json.dumps(value, sort_keys=True).encode()


if __name__ == "__main__":
    main()
