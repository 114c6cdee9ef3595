"""What a person can do something about.

A `Trouble` ends the program with its one line and no stack of errors. Anything else that is raised is
a mistake in this program and may show its stack.
"""

import os
import shutil

DEBIAN_PACKAGE_OF = {
    "bridge": "containernetworking-plugins",
    "busybox": "busybox-static",
    "debootstrap": "debootstrap",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "readelf": "binutils",
    "runc": "runc",
    "unshare": "util-linux",
}

# Debian keeps these out of the PATH of ordinary users.
ADMINISTRATOR_PATH = "/usr/sbin:/sbin"


class Trouble(Exception):
    """One line for a person: what is wrong and what to do about it."""


def search_path() -> str:
    """The PATH to look tools up in."""
    return f"{os.environ.get('PATH', os.defpath)}:{ADMINISTRATOR_PATH}"


def need_tool(tool: str) -> str:
    """The path of an installed tool, or the line that says how to install it."""
    found = shutil.which(tool, path=search_path())
    if found:
        return found
    if tool == "go":
        raise Trouble("go is not installed: install Go 1.26 or newer")
    if tool == "cargo":
        raise Trouble("cargo is not installed: install Rust 1.95 or newer, from rustup.rs")
    package = DEBIAN_PACKAGE_OF[tool]
    raise Trouble(f"{tool} is not installed: apt-get install {package} (or run tests/cluster/install-deps)")


def need_cni_plugins() -> str:
    """The directory of the CNI plugins, or the line that says how to install them."""
    for directory in ("/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"):
        if all(os.access(f"{directory}/{plugin}", os.X_OK) for plugin in ("bridge", "host-local", "loopback")):
            return directory
    package = DEBIAN_PACKAGE_OF["bridge"]
    raise Trouble(f"the CNI plugins are not installed: apt-get install {package} (or run tests/cluster/install-deps)")


def need_root(for_what: str) -> None:
    """Namespaces, mounts and cgroups are the administrator's."""
    if os.geteuid() != 0:
        raise Trouble(f"{for_what} needs root: run it again with sudo, or use --nodes fake")
