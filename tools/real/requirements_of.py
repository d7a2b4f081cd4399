"""Prints what a wheel requires, without extras and without some names.

python requirements_of.py FILE.whl --without torch torchvision
"""

import argparse
import zipfile
from email.parser import Parser
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement  # the environment holds nothing but pip at this point
from pip._vendor.packaging.utils import canonicalize_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--without", nargs="*", default=[])
    arguments = parser.parse_args()
    without = {canonicalize_name(name) for name in arguments.without}
    with zipfile.ZipFile(arguments.wheel) as wheel:
        path = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(path).decode())
    for line in metadata.get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        if canonicalize_name(requirement.name) in without:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            print(line)


if __name__ == "__main__":
    main()
