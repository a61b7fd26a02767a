#!/bin/sh
# Tells sniffer that a job of GitLab begins: the first line of before_script. For the shell executor.
# It never fails a job, and takes ten seconds at the most.

command -v sniffer >/dev/null 2>&1 || exit 0
[ -n "${CI_JOB_ID:-}" ] || exit 0
timeout 10 sniffer job start --ci gitlab --id "$CI_JOB_ID" \
  ${CI_JOB_NAME:+--name "$CI_JOB_NAME"} ${CI_PROJECT_PATH:+--repository "$CI_PROJECT_PATH"} \
  ${CI_PIPELINE_ID:+--run "$CI_PIPELINE_ID"} ${CI_JOB_URL:+--url "$CI_JOB_URL"} || true
