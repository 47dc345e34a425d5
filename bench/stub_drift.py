"""Fails when the committed protobuf stubs are not what the protos generate."""

from __future__ import annotations

import filecmp
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parent.parent
STUBS = ROOT / "services" / "paceline" / "v1"


def main() -> int:
    protos = sorted(str(path) for path in (ROOT / "proto" / "paceline" / "v1").glob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        if protoc.main(["protoc", f"--proto_path={ROOT / 'proto'}", *outputs, *protos]):
            return 1
        fresh = Path(folder) / "paceline" / "v1"
        names = sorted({path.name for place in (fresh, STUBS) for path in place.glob("*_pb2*")})
        _, different, missing = filecmp.cmpfiles(fresh, STUBS, names, shallow=False)
    for name in (*different, *missing):
        print(f"services/paceline/v1/{name} is not what the protos generate; run `make proto`")
    print(f"{len(names)} stubs compared, {len(different) + len(missing)} differ")
    return 1 if different or missing else 0


if __name__ == "__main__":
    sys.exit(main())
