#!/bin/sh
# Tells sniffer that a build of Jenkins ends, and the build's log what it still holds: the last step in a node block (post, always), or
# the last build step of a freestyle job. Without it the end of a build is believed ten minutes after its last step.
# It never fails a build, and takes thirty seconds at the most.

command -v sniffer >/dev/null 2>&1 || exit 0
id="${JENKINS_NODE_COOKIE:-${BUILD_TAG:-}}"
[ -n "$id" ] || exit 0
timeout 30 sniffer job end --ci jenkins --id "$id" || true
