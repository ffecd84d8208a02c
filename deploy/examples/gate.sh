#!/bin/sh
# Deploys an image to a region only when its bytes are there, so that no machine of that region pulls them across the ocean.
#
#   gate.sh IMAGE LOCATION COMMAND [ARGUMENT ...]
#   gate.sh registry.example.com/team/app:v1 eu kubectl --context eu rollout restart deployment/app
#
# Runs COMMAND and ends with its exit code, with IMAGE_DIGEST set to the digest that was waited for: deploy that, and no tag that may
# have moved meanwhile. Ends with 75 (try again later) when the image is not there yet, and with 2 when it never will be.
# GATE_TIMEOUT: how long to wait, 10m by default. GATE_OPTIONS: further options of `antipode wait`, such as --referrers.
set -u

if [ "$#" -lt 3 ]; then
    echo "usage: gate.sh IMAGE LOCATION COMMAND [ARGUMENT ...]" >&2
    exit 2
fi
image=$1 location=$2
shift 2

# The options are words: they are meant to be split.
# shellcheck disable=SC2086
answer=$(antipode wait "$image" --location "$location" --timeout "${GATE_TIMEOUT:-10m}" --output json ${GATE_OPTIONS:-})
code=$?
if [ "$code" -ne 0 ]; then
    printf '%s\n' "$answer" >&2
    [ "$code" -eq 1 ] && exit 75
    exit 2
fi
IMAGE_DIGEST=$(printf '%s\n' "$answer" | sed -n 's/^  "digest": "\(.*\)",$/\1/p')
export IMAGE_DIGEST
exec "$@"
