# What scripts/check and scripts/test share: the checks that need Go alone, and the
# time of each part. Both source this file.
# shellcheck shell=bash

staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Go modules of their own, which ./... leaves out: what they need shall be no dependency
# of modsign.
modules=(scripts/benchreport scripts/roots scripts/site internal/rsabatch/asm)

parts=() # a line for each finished part: its seconds and its name

# step starts the next part and prints how long the last one took.
step() {
	finish_step
	current=$*
	begin=$SECONDS
	echo "== $current" >&2
}
current=

finish_step() {
	[[ -n $current ]] || return 0
	parts+=("$(printf '%6d s  %s' "$((SECONDS - begin))" "$current")")
	echo "   $((SECONDS - begin)) s" >&2
	current=
}

# times prints the time of every part, and of all of them.
times() {
	finish_step
	printf '%s\n' "== time" "${parts[@]}" "$(printf '%6d s  %s' "$SECONDS" total)" >&2
}

die() {
	echo "$0: $*" >&2
	exit 1
}

check_gofmt() {
	local unformatted
	unformatted=$("$(go env GOROOT)/bin/gofmt" -l .)
	[[ -z $unformatted ]] || die "gofmt -w is needed on:"$'\n'"$unformatted"
}

# check_staticcheck builds staticcheck with the Go that builds this module.
check_staticcheck() {
	local version module
	version=$(go env GOVERSION)
	GOTOOLCHAIN=$version go run "$staticcheck" -tags kerneltest ./...
	for module in "${modules[@]}"; do
		(cd "$module" && GOTOOLCHAIN=$version go run "$staticcheck" ./...)
	done
}

check_scripts() {
	local scripts
	mapfile -t scripts < <(find . -name .git -prune -o -type f -exec awk 'FNR == 1 && /^#!.*sh$/ { print FILENAME } { nextfile }' {} +)
	shellcheck -- scripts/steps.sh scripts/cache.sh scripts/suites.sh "${scripts[@]}"
}

# check_source runs every check that reads the source and runs nothing of it: strict, or
# lenient where shellcheck is missing.
check_source() {
	local module
	step gofmt
	check_gofmt
	step go mod tidy
	go mod tidy -diff
	for module in "${modules[@]}"; do
		go mod tidy -C "$module" -diff
	done
	step go vet
	go vet ./...
	for module in "${modules[@]}"; do
		go vet -C "$module" ./...
	done
	go vet -tags kerneltest ./internal/kerneltest
	GOARCH=386 go vet ./... # numbers of 32 bits
	step staticcheck
	check_staticcheck
	step shellcheck
	if command -v shellcheck >/dev/null; then
		check_scripts
	elif [[ $1 == strict ]]; then
		die "shellcheck is missing: apt-get install shellcheck"
	else
		echo "   skipped: shellcheck is missing: apt-get install shellcheck" >&2
	fi
}

# said prints what the tests that ended with a verdict (FAIL or SKIP) have logged, from
# the output of go test -v, and every line about a package that failed.
said() {
	awk -v verdict="$1:" '
		/^=== / { test = $3; next }
		/^ *--- (PASS|FAIL|SKIP): / {
			if ($2 == verdict) printf "%s\n%s", $0, log_of[$3]
			delete log_of[$3]
			next
		}
		/^(ok|PASS|\?)/ { next }
		verdict == "FAIL:" && /^(FAIL|panic:|#|[^ ]*\.go:[0-9]+)/ { print }
		{ log_of[test] = log_of[test] $0 "\n" }
		END { if (verdict == "FAIL:") for (test in log_of) printf "%s", log_of[test] }' "$2" # what a panic ended
}
