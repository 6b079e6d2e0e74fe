#compdef @NAME@
# zsh completion for @NAME@
@FUNCTION@() {
	local line
	local -a found
	while IFS= read -r line; do
		found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
	done < <("${words[1]}" completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)
	if (( ${#found} )); then
		_describe -V '@NAME@' found
	else
		_files
	fi
}
if [[ $funcstack[1] == _@NAME@ ]]; then
	@FUNCTION@ "$@"
else
	compdef @FUNCTION@ @NAME@
fi
