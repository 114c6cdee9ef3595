"""The VM jobs of the example. They only take their time."""
import time


def create_vm(vm_id, vm_name):
    time.sleep(2)
    return {"return_code": 0}


def boot_vm(vm_id):
    time.sleep(1)
    return {"return_code": 0, "output": "vm:%s booted" % vm_id}
