# Recipes for daily work. Each is one line that calls cargo, so `just` is convenient but never required.

# list the recipes
default:
    @just --list

# compare all models (the main command)
compare *args:
    cargo run --release -- compare {{args}}

# check every guarantee of every model
check *args:
    cargo run --release -- check {{args}}

# generate the matrix in the docs again
matrix:
    cargo run --release -- check --markdown --seed 1 > docs/src/matrix.md

# run one server
serve model *args:
    cargo run --release -- serve {{model}} {{args}}

# send load to a server
drive address *args:
    cargo run --release -- drive {{address}} {{args}}

# list the models and protocols
list:
    cargo run --release -- list

# run all tests
test:
    cargo test --workspace

# check the format, and run clippy with warnings as errors, as CI does
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# measure the latency of single conversations, with criterion
bench *args:
    cargo bench --bench models -- {{args}}

# measure the servers and the client of this project against bare references
ratio *args:
    cargo bench --bench ratio -- {{args}}

# build the API documentation, and open it
doc:
    cargo doc --workspace --no-deps --open

# show the book, with live reload (needs: cargo install mdbook)
book:
    mdbook serve docs --open
