#!/bin/sh
# Tells sniffer that a job of GitLab ends, and the job's log what it still holds: the last line of after_script, which runs when the
# script has failed too. For the shell executor.
# It never fails a job, and takes thirty seconds at the most.

command -v sniffer >/dev/null 2>&1 || exit 0
[ -n "${CI_JOB_ID:-}" ] || exit 0
timeout 30 sniffer job end --ci gitlab --id "$CI_JOB_ID" || true
