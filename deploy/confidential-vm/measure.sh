#!/bin/sh
# Print what members vote for. Arguments: firmware, kernel, initrd, file with the command line.
set -eu
case ${platform} in
  snp)
    # add_snp_measurement; needs firmware with a table of kernel hashes (OVMF's AmdSev package)
    exec sev-snp-measure --mode snp --vcpus ${vcpus} --vcpu-type ${vcpu_type} \
      --ovmf "$$1" --kernel "$$2" --initrd "$$3" --append "$$(cat "$$4")"
    ;;
  tdx)
    echo "MRTD is the firmware's: its builder publishes it. RTMR1 and RTMR2 cover kernel, initrd and command line:" >&2
    echo "start the image once where you trust the machine, and read them with: coco policy explain EVIDENCE" >&2
    ;;
  azure-vtpm)
    echo "start the image once where you trust the machine, and read the registers with: tpm2_pcrread sha256" >&2
    ;;
esac
