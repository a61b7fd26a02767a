#!/bin/sh
# Tells sniffer that a job of GitHub Actions begins.
# In the runner's .env: ACTIONS_RUNNER_HOOK_JOB_STARTED=/usr/share/sniffer/integrations/github/job-started.sh
# It never fails a job, and takes ten seconds at the most.

command -v sniffer >/dev/null 2>&1 || exit 0
[ -n "${RUNNER_TRACKING_ID:-}" ] || exit 0

url=
if [ -n "${GITHUB_SERVER_URL:-}" ] && [ -n "${GITHUB_REPOSITORY:-}" ] && [ -n "${GITHUB_RUN_ID:-}" ]; then
  url="$GITHUB_SERVER_URL/$GITHUB_REPOSITORY/actions/runs/$GITHUB_RUN_ID"
fi
timeout 10 sniffer job start --ci github --id "$RUNNER_TRACKING_ID" \
  ${GITHUB_JOB:+--name "$GITHUB_JOB"} ${GITHUB_REPOSITORY:+--repository "$GITHUB_REPOSITORY"} \
  ${GITHUB_RUN_ID:+--run "$GITHUB_RUN_ID"} ${url:+--url "$url"} || true
