from nlrewrite.cli import main

raise SystemExit(main())
