#!/bin/sh
# Fails on purpose: the VM boots with its address alone.
echo "[INFO]$bar"
echo "[ERR_MSG]err"
echo "[OUTPUT]storage01"
exit 1
