# python3 -c THIS_TEXT EXTENSION SOCKET_FD [PRELOAD_MODULE...]
# Loads the extension module and serves. It must stay readable to every old python, so that a too old
# one can say so; and it runs before anything of the user's does, hence the first statement after `sys`.
import sys

if sys.path and sys.path[0] == "":
    del sys.path[0]


def main():
    extension, fd, preload = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    sys.argv[:] = [""]
    here = "python %s (%s)" % (sys.version.split()[0], sys.executable)
    if sys.version_info < (3, 9):
        return here + " is too old for api nodes: 3.9 or newer is needed"
    if sys.implementation.name != "cpython":
        return "%s is %s: api nodes need CPython" % (here, sys.implementation.name)
    if "t" in sys.abiflags:
        return here + " is a free-threaded build: api nodes need one with the GIL"
    if "musl" in getattr(sys.implementation, "_multiarch", ""):
        return here + " is built on musl, as Alpine has it: api nodes need a Python on glibc, 2.28 or newer"
    try:
        from importlib import machinery, util

        loader = machinery.ExtensionFileLoader("apscli_python", extension)
        module = util.module_from_spec(util.spec_from_file_location("apscli_python", extension, loader=loader))
        loader.exec_module(module)
    except BaseException as error:
        return "%s cannot load %s: %s: %s" % (here, extension, type(error).__name__, error)
    try:
        module.serve(fd, preload)
    except BaseException as error:
        return "%s cannot serve api nodes: %s: %s" % (here, type(error).__name__, error)


trouble = main()
if trouble:
    sys.stderr.write("apscli: " + " ".join(trouble.split()) + "\n")
    sys.stderr.flush()
# Not sys.exit: a thread or exit hook of a preloaded module could keep a finished interpreter alive.
__import__("os")._exit(3 if trouble else 0)
