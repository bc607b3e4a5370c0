#!/bin/sh
# Services are not started while their packages are installed.
exit 101
