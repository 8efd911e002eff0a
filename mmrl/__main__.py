"""`python -m mmrl` is the command line."""

if __name__ == "__main__":
    from mmrl.pipelines.cli import main

    main()
