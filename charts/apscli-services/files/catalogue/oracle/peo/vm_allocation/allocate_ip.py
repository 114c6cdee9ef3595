#!/usr/bin/env python3
import argparse
import time

parser = argparse.ArgumentParser()
parser.add_argument("--ip", required=True)
ip = parser.parse_args().ip
time.sleep(5)
print("[OUTPUT] ip: %s allocated" % ip)
