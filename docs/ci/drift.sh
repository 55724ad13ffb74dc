#!/usr/bin/env bash
# Quantize, measure and judge each compute type of a model: what the GitHub action, the GitLab job and this
# repository's own CI run. Options are environment variables; docs/ci/README.md explains them.
#
# Exit code: 0 when all passed, else the first of edge-embed's that was not: 1 crash, 2 bad input, 3 gate failed,
# 4 cannot judge, 5 inconclusive with STRICT=true. Every compute type is measured and reported all the same.
set -uo pipefail

: "${MODEL:?name a model folder}" "${REFERENCE:?name a reference.npz}"
: "${COMPUTE_TYPES:=int8_weights int8}" "${REPORTS:=drift}" "${QUANTIZE:=true}" "${STRICT:=false}"
: "${TEXTS:=}" "${CALIBRATION:=}" "${BUDGET:=}" "${BASELINE:=}"

mkdir -p "$REPORTS" || exit 2
if [ -n "${GITHUB_OUTPUT:-}" ]; then
    echo "reports=$REPORTS" >>"$GITHUB_OUTPUT"
fi

judge() { # of one compute type, through to the verdict
    local type=$1 out=$REPORTS/$1 code gated
    local measure=(--reference "$REFERENCE" --compute-type "$type" -o "$out.json")
    local gate=(--markdown "$out.md" --html "$out.html" --junit "$out.xml")
    [ -z "$TEXTS" ] || measure+=(--texts "$TEXTS")
    [ -z "$BUDGET" ] || gate+=(--budget "$BUDGET")
    [ -z "$BASELINE" ] || gate+=(--baseline "$BASELINE")
    [ "$STRICT" != true ] || gate+=(--strict)
    [ -z "${GITHUB_ACTIONS:-}" ] || gate+=(--annotations)
    echo "== $type"
    if [ "$QUANTIZE" = true ]; then
        case $type in
        int8)
            edge-embed quantize "$MODEL" --compute-type int8 --no-drift \
                ${CALIBRATION:+--calibration "$CALIBRATION"} || return
            ;;
        int8_weights | int8_dynamic)
            edge-embed quantize "$MODEL" --compute-type int8_weights --no-drift || return
            ;;
        esac
    fi
    edge-embed drift measure "$MODEL" "${measure[@]}"
    code=$?
    # A candidate that crashed has left a drift.json: its report is written, too.
    if [ "$code" -gt 1 ] || [ ! -f "$out.json" ]; then
        return "$code"
    fi
    edge-embed gate "$out.json" "${gate[@]}"
    gated=$?
    [ "$code" -ne 0 ] || code=$gated
    if [ -n "${GITHUB_STEP_SUMMARY:-}" ] && [ -f "$out.md" ]; then
        cat "$out.md" >>"$GITHUB_STEP_SUMMARY"
    fi
    return "$code"
}

first=0
for type in $COMPUTE_TYPES; do
    rm -f "$REPORTS/$type".{json,md,html,xml}
    judge "$type"
    code=$?
    [ "$first" -ne 0 ] || first=$code
done
exit "$first"
