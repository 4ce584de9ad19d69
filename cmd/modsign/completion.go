package main

import (
	"github.com/spf13/cobra"
)

func newCompletionCommand(u *ui) *cobra.Command {
	return &cobra.Command{
		Use:   "completion {bash | zsh | fish}",
		Short: "Write a shell's completion script",
		Long: `Completion writes a script that makes a shell complete the commands, flags and values of
modsign. Bash also needs the package bash-completion.`,
		Example: `  modsign completion bash > /usr/share/bash-completion/completions/modsign
  modsign completion zsh > /usr/share/zsh/vendor-completions/_modsign
  modsign completion fish > /usr/share/fish/vendor_completions.d/modsign.fish`,
		DisableFlagsInUseLine: true,
		ValidArgs:             []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("completion needs the name of one shell: bash, zsh or fish")
			}
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(u.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(u.Stdout)
			case "fish":
				return root.GenFishCompletion(u.Stdout, true)
			}
			return usagef("there is no completion for %q: bash, zsh and fish have one", args[0])
		},
	}
}
