#!/bin/sh
# Build the image file and print PCR0, PCR1 and PCR2, by AWS's tool and by arithmetic of our own.
set -eu
cd "$$(dirname "$$0")"
docker build --tag coco-enclave --file Containerfile .
nitro-cli build-enclave --docker-uri coco-enclave --output-file coco.eif
./bundle/coco measure --eif coco.eif
