from wharfinger.command import main

main()
