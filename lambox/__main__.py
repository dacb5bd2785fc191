from lambox.cli import main

main()
