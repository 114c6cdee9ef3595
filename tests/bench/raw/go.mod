module apscli.dev/tests/bench/raw

go 1.26.0
