#!/bin/sh
# Print what members vote for: MRENCLAVE (add_sgx_code_id) and MRSIGNER of the signed manifest.
set -eu
cd "$$(dirname "$$0")"
gramine-manifest coco.manifest.template coco.manifest
gramine-sgx-sign --manifest coco.manifest --output coco.manifest.sgx --key "$${1:?the key that signs the enclave, PEM}"
gramine-sgx-sigstruct-view coco.sig
