# What people do daily. Every recipe is one line over cargo, so that `just` stays a convenience.

# the recipes
default:
    @just --list

# compare all models: the main job
compare *args:
    cargo run --release -- compare {{args}}

# which model keeps which promise
check *args:
    cargo run --release -- check {{args}}

# the matrix in the docs, made anew
matrix:
    cargo run --release -- check --markdown --seed 1 > docs/src/matrix.md

# one server
serve model *args:
    cargo run --release -- serve {{model}} {{args}}

# ask a server
drive address *args:
    cargo run --release -- drive {{address}} {{args}}

# the models and protocols
list:
    cargo run --release -- list

# everything that must pass
test:
    cargo test --workspace

# what CI is strict about
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# latency of single conversations, with criterion
bench *args:
    cargo bench --bench models -- {{args}}

# our servers and client against bare references
ratio *args:
    cargo bench --bench ratio -- {{args}}

# the API documentation
doc:
    cargo doc --workspace --no-deps --open

# the book, with live reload (cargo install mdbook)
book:
    mdbook serve docs --open
