# Sourced by the scripts that make tables of results, in the repository's root: KVAQ, out/ and results/, and statistics.
KVAQ=${KVAQ:-build/release/bin/kvaq}
mkdir -p out results
# calibrated MODEL STATS flags...: the statistics, made if they are not there
calibrated() {
    [ -e "$2" ] || "$KVAQ" calibrate -m "$1" "${@:3}" -o "$2"
}
